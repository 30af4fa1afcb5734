# The session comes back in time: the image goes on from where it stands.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> wait 100ms
> hello 1 2
    welcome at epoch 2
> checkpoint 3
    commit
