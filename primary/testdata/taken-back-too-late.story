# The host that was granted the guest runs it after all, before the former owner
# asks to have it back, or the log hears of that.
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
> wait 1s
    propose return (generation 2, revision 3, epoch 0)
    = yielded
> log-unseen activated
> applied
    end: superseded
    = ended
