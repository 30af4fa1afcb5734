# The disks' locks are waited for so long that the former owner takes its guest
# back: the machine must not run any more, and no session begins before the disks
# are let go of.
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
> slow-disks
> loaded
> applied
    activate the disks in generation 2
> not-activated
    warn: activate the disks: the other host has the lock
> wait 20ms
    reset
    load
> loaded
    activate the disks in generation 2
> taken-back
    warn: a has taken the guest back: the takeover took too long
> hello 3
    refuse: the waiting machine is being replaced
> activated
> wait 20ms
> hello 3
    prepare a new image
