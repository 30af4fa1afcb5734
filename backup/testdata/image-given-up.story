# A page that was left out of a checkpoint cannot be rebuilt: nothing goes on from
# this image any more, neither a session nor, though the log names it, the guest.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> checkpoint 3
    commit
> commit-fails
    giveup
    propose out-of-sync (generation 1, revision 2, epoch 2)
> wait 250ms
> hello 1 3
    prepare a new image
> sync 1
    commit
> spoilt
    giveup
> wait 250ms
