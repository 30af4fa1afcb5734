# The backup was granted a takeover: the guest here stands still behind a shut
# gate, is kept until the new owner runs it, and then given up (RULES 10).
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
> link-down
    = protected
> log takeover
    shut
    pause: another host takes the guest over
    = yielded
> log activated
    end: superseded
    = ended
