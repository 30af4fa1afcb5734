# A guest is started, synchronised and protected; its output is held from the
# first checkpoint on, before InSync is proposed (RULES 1).
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
> wait 25ms
    capture 4
    = entering
> ack 3
    forget through 3
    release through 3
    propose in-sync (generation 1, revision 1, epoch 3)
    = entering
> applied
    = protected
> ack 4
    forget through 4
    release through 4
    = protected
> wait 25ms
    capture 5
    = protected
> ack 5
    forget through 5
    release through 5
    = protected
