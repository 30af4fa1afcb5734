# The owner's daemon has adopted its guest in a new generation: the old session
# feeds nothing any more.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log adopt
    drop: generation 1 is over
> checkpoint 3
> hello 1 2
    refuse: the log here names a the owner in generation 2, not a in generation 1
> hello 2
    prepare a new image
> checkpoint 1
    commit
