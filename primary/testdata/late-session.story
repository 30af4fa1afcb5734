# A session comes up that was asked for before the guest was surrendered: the
# gate stays shut.
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
> log takeover
    shut
    pause: another host takes the guest over
    = yielded
> link-resumed 4
    forget through 4
    restore
    disconnect: another host takes the guest over
    = yielded
