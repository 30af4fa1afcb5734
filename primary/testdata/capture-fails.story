# A capture fails after its frames were sealed: they are held for the next
# attempt, which has the same number, and nothing is released.
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
> capture-will-fail
> wait 30ms
    capture 4
    warn: epoch 4 was not captured: no device state
    hold
    = protected
> wait 30ms
    capture 4
    = protected
> ack 4
    forget through 4
    release through 4
    = protected
