# An operator says of this host that it is off, and it is not: it gets no lease any
# more, stands still when the last one is over, and only then says that it lives.
> start
    pass
    = alone
> lease
    resumeguest
    connect
    = alone
> fenced
    = alone
> wait 500ms
    = alone
> wait 600ms
    pause: the lease ran out
    propose unfence (generation 1, revision 2, epoch 0)
    = alone
> applied
    = alone
> lease
    resumeguest
    = alone
