# A backup that does not promise to wait: nothing is done to the guest.
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
> wait 200ms
    capture 4
    = protected
> remain
    warn: handover given up: it took too long
    bid for patience: 0s
    = protected
