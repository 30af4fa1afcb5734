# The owner's host is fenced: the takeover does not wait for the disks' locks.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> fenced
> wait 250ms
    load
    propose takeover (generation 1, revision 3, epoch 2)
> loaded
> applied
    activate the disks in generation 2, the other host is off
    run
    end: took over
