# A backup that took over begins with a running guest: its gate passes as soon
# as there is a lease, and the log learns that it runs.
> takeover
    propose activated (generation 2, revision 7, epoch 0)
    = starting
> lease
    = starting
> applied
    pass
    connect
    = alone
> link-fresh
    refill
    sync 1
    sync 2
    hold
    = entering
