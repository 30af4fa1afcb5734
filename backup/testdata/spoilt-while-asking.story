# While the takeover is asked for, a page turns out not to be on the disk any more:
# the loaded machine must not run, and the grant is given back.
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
> loaded
> spoilt
    warn: the image cannot be made whole: a page cannot be rebuilt
> applied
    propose return (generation 2, revision 3, epoch 0)
> applied
> wait 20ms
> hello 3
    prepare a new image
