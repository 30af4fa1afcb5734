# The log knew already that the guest runs here, and its former owner has ended
# what it kept: the guest is lost.
> takeover
    propose activated (generation 2, revision 7, epoch 0)
    = starting
> guest gone
    warn: the guest's hypervisor is gone: said so
    = starting
> applied-silently
    = starting
> wait 50ms
    propose return (generation 2, revision 7, epoch 0)
    = starting
> applied
    shut
    end: lost
    = ended
