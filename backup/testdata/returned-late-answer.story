# The grant is given back, and the log tells of it before the answer does: that
# one comes when the next image is in sync already, and says nothing about it.
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
> applied-seen
    warn: a has taken the guest back: the takeover took too long
> wait 20ms
> hello 3
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> answer
> checkpoint 3
    commit
> lost
> wait 250ms
    load
    propose takeover (generation 3, revision 5, epoch 3)
