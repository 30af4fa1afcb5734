# The guest dies after its backup has come back with an empty image: there is
# nobody to surrender to.
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
> wait 60ms
    connect
    = protected
> link-fresh
    refill
    disconnect: the backup is given up
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
> guest gone
    warn: the guest's hypervisor is gone: said so
    = detaching
> applied
    pass
    shut
    end: lost
    = ended
