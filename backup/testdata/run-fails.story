# The loaded machine does not run: another one is loaded.
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
> no-run
> loaded
    activate the disks in generation 2
    run
    warn: the loaded machine did not run: it did not run
    reset
    load
> wait 20ms
> loaded
    activate the disks in generation 2
    run
    end: took over
