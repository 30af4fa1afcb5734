# The backup's memory differs: its epoch is not released, its image is given up.
> start
    pass
    = alone
> lease
    resumeguest
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    hold
    = entering
> ack 1
    forget through 1
    capture 3
    = entering
> ack 2
    forget through 2
    = entering
> ack 3
    forget through 3
    release through 3
    propose in-sync (generation 1, revision 1, epoch 3)
    = entering
> applied
    = protected
> mismatch 4
    warn: the backup's memory differs after epoch 4: its image is given up and made anew
    disconnect: the backup is given up
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
> applied
    pass
    = alone
> wait 60ms
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    hold
    = entering
