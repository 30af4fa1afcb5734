# A capture fails while the epoch before it is on its way, and the session is lost. The
# backup has that epoch, its next welcome says so: what belongs to it is released, and
# only what belongs to none is held anew. Held anew before, it would be sent twice.
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
> wait 30ms
    capture 4
    = protected
> capture-will-fail
> wait 30ms
    capture 5
    warn: epoch 5 was not captured: no device state
    = protected
> link-down
    = protected
> wait 60ms
    connect
    = protected
> lease
    = protected
> wait 60ms
    = protected
> link-resumed 4
    forget through 4
    release through 4
    restore
    hold
    capture 5
    = protected
> ack 5
    forget through 5
    release through 5
    = protected
