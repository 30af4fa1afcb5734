# The backup has another image by now: as if it had been lost at any other time.
> continue
    hold
    = protected
> lease
    resumeguest
    connect
    = protected
> link-fresh
    refill
    disconnect: the backup is given up
    propose out-of-sync (generation 1, revision 1, epoch 3)
    = detaching
> applied
    pass
    = alone
