# The host stood still while the backup was granted a takeover and gave it
# back. The log names no backup any more: the guest is not protected, and its
# session is of a generation that is over.
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
> log-unseen takeover
> log-unseen return
> log-seen
    renew generation 3
    disconnect: its generation is over
    pass
    pause: the lease ran out
    = alone
> lease
    resumeguest
    = alone
