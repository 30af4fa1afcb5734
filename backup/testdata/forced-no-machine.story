# No machine takes the image's state: nothing is asked for any more.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> lost
> forced
    load
    propose force (generation 1, revision 1, epoch 2)
> unknown
    warn: force: outcome unknown: no answer
> load-fails
    warn: the waiting machine did not load the checkpoint: bad device state
> wait 50ms
    reset
    load
    propose force (generation 1, revision 1, epoch 2)
> load-fails
    warn: the waiting machine did not load the checkpoint: bad device state
> wait 50ms
    reset
    load
> load-fails
    warn: the waiting machine did not load the checkpoint: bad device state
> wait 50ms
    reset
