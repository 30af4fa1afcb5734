# Protection is paused while nobody knows whether InSync was applied: output waits
# until the log certainly names no backup (RULES 4).
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
> unknown
    = entering
> pause
    disconnect: the backup is given up
    = detaching
> wait 50ms
    propose out-of-sync (generation 1, revision 2, epoch 0)
    = detaching
> applied
    pass
    = alone
> wait 100ms
    = alone
