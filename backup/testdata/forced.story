# The guest's protection was paused, and its host is lost: an operator forces it
# to go on from the image that the log does not name.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log pause
> lost
> wait 10s
> forced
    load
    propose force (generation 1, revision 3, epoch 2)
> loaded
> applied
    answer: <nil>
    activate the disks in generation 2
    run
    end: took over
