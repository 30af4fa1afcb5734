# The lease runs out: the guest is paused before its end. A renewal in the same
# generation lets it run on. Without one for long, the backup is let go.
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
> wait 960ms
    pause: the lease ran out
    = protected
> lease
    resumeguest
    capture 4
    = protected
> wait 960ms
    pause: the lease ran out
    = protected
> wait 2100ms
    disconnect: the backup is given up
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
