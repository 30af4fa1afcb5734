# Each host has a copy of the disk. The guest is not protected before the copies
# have been compared, however few pages are left (one step every floor meanwhile), and
# its first checkpoint waits until no write of before output commit is on its
# way to the disk any more: a postponed epoch keeps its number.
> start
    pass
    = alone
> comparing
> lease
    resumeguest
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    = syncing
> ack 1
    forget through 1
    = syncing
> wait 25ms
    sync 3
    = syncing
> ack 2
    forget through 2
    = syncing
> compared
> wait 25ms
    sync 4
    hold
    = entering
> unsettled
> ack 3
    forget through 3
    capture 5
    = entering
> wait 25ms
    capture 5
    = entering
> settled
> wait 25ms
    capture 5
    = entering
> ack 4
    forget through 4
    = entering
> ack 5
    forget through 5
    release through 5
    propose in-sync (generation 1, revision 1, epoch 5)
    = entering
> applied
    = protected
