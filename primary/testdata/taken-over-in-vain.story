# The guest dies here before the log knows that it runs here: nothing of it has
# left, so it is given back to its former owner, which has kept it (RULES 10).
> takeover
    propose activated (generation 2, revision 7, epoch 0)
    = starting
> guest gone
    warn: the guest's hypervisor is gone: said so
    = starting
> unknown
    = starting
> wait 50ms
    propose return (generation 2, revision 7, epoch 0)
    = starting
> applied
    shut
    end: superseded
    = ended
