# The session is lost with the last epoch on its way: it is taken again on the next
# session, whose backup has to promise anew.
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
> link-resumed 3
    restore
    hold
    resumeguest
    bid for patience: 5s
    capture 4
    = protected
> patient
    capture 5, the guest stays paused
    = protected
> ack 4
    forget through 4
    release through 4
    = protected
