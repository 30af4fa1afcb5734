# The session is lost, and the backup had committed the last epoch.
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
> handover
    bid for patience: 5s
    = protected
> patient
    capture 4, the guest stays paused
    = protected
> link-down
    = protected
> wait 60ms
    connect
    = protected
> lease
    = protected
> link-resumed 4
    forget through 4
    release through 4
    restore
    hold
    bid for patience: 5s
    = protected
> patient
    end: handed over
    = ended
