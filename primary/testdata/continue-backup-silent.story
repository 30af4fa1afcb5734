# The backup does not come back: the guest goes on alone once that is recorded.
> continue
    hold
    = protected
> lease
    resumeguest
    connect
    = protected
> link-down
    = protected
> wait 400ms
    connect
    = protected
> lease
    = protected
> wait 400ms
    = protected
> lease
    = protected
> wait 300ms
    propose out-of-sync (generation 1, revision 1, epoch 3)
    = detaching
> applied
    pass
    = alone
