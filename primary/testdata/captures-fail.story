# A device cannot be saved any more. Output is held back only so long: then the
# log is told, the guest runs on unprotected, and is tried again after a rest.
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
> captures fail
> wait 100ms
    capture 4
    warn: epoch 4 was not captured: no device state
    hold
    = protected
> wait 100ms
    capture 4
    warn: epoch 4 was not captured: no device state
    hold
    = protected
> lease
    = protected
> wait 900ms
    capture 4
    warn: epoch 4 was not captured: no device state
    hold
    = protected
> lease
    = protected
> wait 900ms
    capture 4
    warn: epoch 4 was not captured: no device state
    hold
    = protected
> lease
    = protected
> wait 200ms
    disconnect: the backup is given up
    propose out-of-sync (generation 1, revision 2, epoch 3)
    = detaching
> applied
    warn: the guest cannot be captured: it runs unprotected, and is tried again later
    pass
    = alone
> wait 500ms
    = alone
> lease
    = alone
> wait 29s
    pause: the lease ran out
    = alone
> lease
    resumeguest
    = alone
> wait 1s
    pause: the lease ran out
    = alone
> lease
    resumeguest
    connect
    = alone
