# The hypervisor dies under a live daemon: the gate is shut, and the backup is
# given the guest without waiting for a lease (RULES 7).
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
> guest gone
    warn: the guest's hypervisor is gone: said so
    shut
    propose surrender (generation 1, revision 2, epoch 3)
    = leaving
> applied
    shut
    disconnect: another host takes the guest over
    end: lost
    = ended
> log takeover
    = ended
> log activated
    = ended
