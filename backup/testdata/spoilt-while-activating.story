# The page is found bad while the disks are activated: the same, once they are.
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
> spoilt
    warn: the image cannot be made whole: a page cannot be rebuilt
> activated
    propose return (generation 2, revision 3, epoch 0)
> applied
> hello 3
    prepare a new image
