# The backup lives, takes each session up again, and refuses the same epoch each
# time: its disk cannot be read. Output waits no longer than for an acknowledgement
# on one session; and when that comes again, the backup is left alone for a while.
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
> lease
    = protected
> link-down
    = protected
> wait 60ms
    connect
    = protected
> link-resumed 3
    restore
    hold
    capture 4
    = protected
> link-down
    = protected
> wait 400ms
    connect
    = protected
> link-resumed 3
    restore
    hold
    capture 4
    = protected
> lease
    = protected
> link-down
    = protected
> wait 400ms
    connect
    = protected
> link-resumed 3
    restore
    hold
    capture 4
    = protected
> link-down
    = protected
> wait 400ms
    connect
    = protected
> link-resumed 3
    restore
    hold
    capture 4
    = protected
> lease
    = protected
> link-down
    = protected
> wait 400ms
    connect
    = protected
> link-resumed 3
    restore
    hold
    capture 4
    = protected
> link-down
    = protected
> wait 400ms
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
> applied
    pass
    connect
    = alone
> wait 60ms
    = alone
> lease
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
    propose in-sync (generation 1, revision 3, epoch 3)
    = entering
> applied
    = protected
> lease
    = protected
> wait 30ms
    capture 4
    = protected
> lease
    = protected
> wait 900ms
    capture 5
    = protected
> lease
    = protected
> wait 900ms
    = protected
> lease
    = protected
> wait 300ms
    disconnect: the backup is given up
    propose out-of-sync (generation 1, revision 4, epoch 3)
    = detaching
> applied
    warn: the backup acknowledges nothing, again: the guest runs unprotected, and it is tried again later
    pass
    = alone
> lease
    = alone
> wait 29s
    pause: the lease ran out
    = alone
> lease
    resumeguest
    = alone
> wait 1s
    pause: the lease ran out
    = alone
> lease
    resumeguest
    connect
    = alone
