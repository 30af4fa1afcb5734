# The same, and the answer was there in time: the log of this host has not told of
# what the former owner did between the two.
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
> force a unseen
> force b
    warn: the takeover was granted for generation 2, this is generation 4: the image is too old
    end: owner
> loaded
