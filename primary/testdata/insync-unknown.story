# The answer to InSync is lost, then the backup. The primary may not go alone
# on a log that may name the backup in sync: it settles that first (RULES 4).
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
> applied-silently
    = entering
> link-down
    = entering
> wait 500ms
    propose out-of-sync (generation 1, revision 1, epoch 0)
    = detaching
> lease
    = detaching
> wait 60ms
    = detaching
> applied
    = detaching
> wait 60ms
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
> applied
    pass
    connect
    = alone
