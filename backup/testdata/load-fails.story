# The device state does not load: a fresh machine, three times, then the grant
# is given back to the owner, which has kept its guest (RULES 10).
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
> load-fails
    warn: the waiting machine did not load the checkpoint: bad device state
> wait 20ms
    reset
    load
> load-fails
    warn: the waiting machine did not load the checkpoint: bad device state
> wait 20ms
    reset
    load
> load-fails
    warn: the waiting machine did not load the checkpoint: bad device state
    propose return (generation 2, revision 3, epoch 0)
> applied
> wait 20ms
> hello 3
    prepare a new image
