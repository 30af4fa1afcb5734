# The guest kept here dies while another host takes it over: there is nothing to
# take back.
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
> guest gone
    warn: the guest's hypervisor is gone: said so
    = yielded
> wait 5s
    = yielded
> log return
    renew generation 3
    pass
    shut
    end: lost
    = ended
