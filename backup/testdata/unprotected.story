# The operator gives the guest's protection up: so are the image and the machine.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> log unprotect
    end: released
