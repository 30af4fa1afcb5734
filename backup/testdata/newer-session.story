# A newer session replaces an open one, whose epochs come too late.
> hello 1
    prepare a new image
> sync 1
    commit
> hello 1 1
    welcome at epoch 1
> sync 2
    commit
