# The guest powers itself off: a last epoch, its output leaves, the log says
# stopped, and only then is it ended (RULES 6).
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
> ack 4
    forget through 4
    release through 4
    shut
    propose stop (generation 1, revision 2, epoch 0)
    = leaving
> ack 5
    = leaving
> applied
    shut
    end: stopped
    = ended
