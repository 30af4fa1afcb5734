# The session breaks and comes back in time: the pages of the lost epoch are
# dirty again, the frames of it wait for the next one; no proposal is needed.
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
> ack 4
    forget through 4
    release through 4
    = protected
> link-down
    = protected
> wait 60ms
    connect
    = protected
> link-resumed 5
    forget through 5
    release through 5
    restore
    hold
    capture 6
    = protected
> ack 6
    forget through 6
    release through 6
    = protected
