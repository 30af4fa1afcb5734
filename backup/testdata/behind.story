# The log asks for an epoch that the image does not hold.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log out-of-sync
> log in-sync 5
> lost
> wait 1s
