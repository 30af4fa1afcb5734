# The backup loses its image while the guest is being surrendered to it: the log
# refuses, the disks are taken on again, and the guest runs on unprotected.
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
> switchover
    capture 4, the guest stays paused
    = protected
> ack 4
    forget through 4
    release through 4
    shut
    propose surrender (generation 1, revision 2, epoch 4)
    = leaving
> log-unseen out-of-sync
> applied
    warn: switchover given up: surrender was refused: it was meant for generation 1 revision 2, the log is at generation 1 revision 3
    renew generation 1
    hold
    resumeguest
    disconnect: the backup has lost its image
    pass
    = alone
> lease
    = alone
