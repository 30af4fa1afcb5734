# The guest powers itself off, and is taken over and given back meanwhile: it is
# still off, and the log has to say stopped.
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
> guest off
    capture 4, the guest stays paused
    = protected
> log takeover
    shut
    disconnect: another host takes the guest over
    = yielded
> log return
    renew generation 3
    pass
    propose stop (generation 3, revision 4, epoch 0)
    = alone
> lease
    = alone
> applied
    shut
    end: stopped
    = ended
