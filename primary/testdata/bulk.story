# The first synchronisation takes the backup long: output is not held, and nothing is
# overdue, before it has the bulk of it.
> start
    pass
    = alone
> bulky
> lease
    resumeguest
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> wait 250ms
    = syncing
> lease
    = syncing
> ack 1
    forget through 1
    hold
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
