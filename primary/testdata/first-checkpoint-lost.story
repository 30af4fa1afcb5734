# The first checkpoint for a new image is lost on the way, with the epoch before it, and
# taken again under an earlier number. The session is lost once more, and the backup has
# it: what belongs to it is released, and not held anew and sent twice.
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
> log out-of-sync
    disconnect: the backup has lost its image
    pass
    = alone
> wait 50ms
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
> link-down
    = entering
> wait 50ms
    connect
    = entering
> link-resumed 1
    restore
    hold
    capture 2
    = entering
> link-down
    = entering
> wait 50ms
    connect
    = entering
> link-resumed 2
    forget through 2
    release through 2
    restore
    hold
    propose in-sync (generation 1, revision 3, epoch 2)
    capture 3
    = entering
