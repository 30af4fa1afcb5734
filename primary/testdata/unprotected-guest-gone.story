# The hypervisor of an unprotected guest dies: nobody can go on from anything.
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
> unprotect
    disconnect: its protection is off
    pass
    = alone
> guest gone
    warn: the guest's hypervisor is gone: said so
    propose out-of-sync (generation 1, revision 3, epoch 0)
    = alone
