# The operator pauses the guest's protection while epochs are on their way: what
# is held leaves once the log says so, and not before; nobody is connected to.
# Resumed, it connects at once, and the image goes on from where it stood.
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
> wait 25ms
    capture 4
    = protected
> pause-unseen
> wait 1ms
    = protected
> log-seen
    disconnect: its protection is paused
    pass
    = alone
> lease
    = alone
> wait 500ms
    = alone
> lease
    = alone
> wait 500ms
    = alone
> protect
    connect
    = alone
> link-resumed 3
    restore
    sync 4
    hold
    capture 5
    = entering
