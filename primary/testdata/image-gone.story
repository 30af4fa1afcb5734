# The backup says that its image is gone (its daemon was started anew): the guest
# runs unprotected at once, for the log says so, and no session goes on.
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
