# The session breaks and does not come back: nothing is released before the log
# has recorded the backup as out of sync (guarantee 6).
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
> wait 30ms
    capture 4
    = protected
> link-down
    = protected
> wait 100ms
    connect
    = protected
> lease
    = protected
> wait 410ms
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
> applied
    pass
    = alone
