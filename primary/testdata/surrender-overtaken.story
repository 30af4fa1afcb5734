# The host was frozen just before a surrender, and wakes when the guest has been taken
# over and given back: the log tells of that first, the disks are taken on in the new
# generation, and only then let go of for the surrender that the log refuses. They
# are taken on once more, else the guest would wait for them for good.
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
> log-unseen takeover
> log return
    renew generation 3
    disconnect: its generation is over
    pass
    = alone
> applied
    renew generation 3
    = alone
> lease
    resumeguest
    = alone
