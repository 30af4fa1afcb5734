# The grant comes before the machine is loaded: it runs once it is.
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
> loaded
    activate the disks in generation 2
    run
    end: took over
