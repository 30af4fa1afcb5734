# The grant comes, the machine takes too long to load, and the former owner takes
# its guest back: this host stands by again, for a new image.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> wait 250ms
    load
    propose takeover (generation 1, revision 2, epoch 2)
> applied
> taken-back
    warn: a has taken the guest back: the takeover took too long
> hello 3
    refuse: the waiting machine is being replaced
> loaded
> wait 20ms
> hello 3
    prepare a new image
